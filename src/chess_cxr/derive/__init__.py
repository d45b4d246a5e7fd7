"""Derived films: written as DICOM or PNG, in the form of their source."""
