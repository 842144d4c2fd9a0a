import sys

from adaftr_fast.cli.main import main

sys.exit(main())
