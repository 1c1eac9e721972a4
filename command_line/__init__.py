"""The command line of ``cli.py``: its help, its parser, its checks and the commands themselves."""
