"""Building blocks: arrays in, arrays out. Nothing here sees a ConfigDict, a file or a flag."""
