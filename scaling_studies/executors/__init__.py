"""How attempts become jobs: one small file per scheduler, all with the interface of ``base``."""
