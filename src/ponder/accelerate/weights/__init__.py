"""Weight formats, role WeightFormat (core.formats): one file each. Laws: stated error, rows independent of each other."""
