"""A run: its folder, loggers, signals, callbacks and dashboard. The command line puts them together."""
