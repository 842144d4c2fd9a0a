import sys

from adaftr_fast.cli.app import main

sys.exit(main())
