"""Where tasks come from, one source a file; ``imaml_lightning.data`` exports them."""
