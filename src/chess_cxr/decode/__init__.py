"""One file of any kind to one film."""
