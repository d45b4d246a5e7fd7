"""All of CheSS on generated films."""
