"""`python -m peft_dp VERB` is `peft-dp VERB`."""

import sys

from peft_dp.suite.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
