"""What may leave the archive, and copies that hold nothing else."""
