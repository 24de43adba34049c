"""torchmeta's class data sets; nothing else in this package imports torchmeta, and this only when one of them is asked for."""
