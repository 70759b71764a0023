"""Turn a reinforcement-learning teacher into a smaller, faster student, and prove what was lost.

The public names and their modules are listed once, in `__init__.pyi`. Each module is imported at first use, because
PyTorch alone takes longer to import than `rldistill --help` may take.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
