"""The console script's commands; importing this package sets up the process for them."""

import gc

# Python collects after every 700 new objects. While modules load nearly all of them are classes
# that stay, and a tenth of a command's start went into looking at them again and again.
NORMAL_COLLECTIONS = gc.get_threshold()
gc.set_threshold(50_000)
