"""Building blocks: arrays in, arrays out. Nothing here sees a config dictionary, a file or a flag."""
