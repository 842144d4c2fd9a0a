import sys

from adaftr_fast.cli import main

sys.exit(main())
