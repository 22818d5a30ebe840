"""`python -m research.generate`."""

import sys

from research.generate import main

sys.exit(main())
