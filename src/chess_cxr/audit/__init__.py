"""Patients and pictures that splits, stores and published lists share."""
