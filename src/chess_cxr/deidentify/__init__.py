"""De-identify: keyed hashes of identifiers, and DICOM copies with allowed attributes only."""
