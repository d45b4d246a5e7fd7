"""Published encoders as folders, each with its model card; `chess_cxr.load_encoder` finds them by name."""
