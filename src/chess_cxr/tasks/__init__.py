"""The tasks that an encoder is judged by."""
