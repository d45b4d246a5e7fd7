"""The demo: all of CheSS on generated films."""
