"""Where everything is kept: ``base`` is the contract, ``sqlite`` keeps it in a file. ``coterie.connect`` opens one."""
