"""Pure functions of pytrees: no files, no printing, no clocks, no random state of their own."""
