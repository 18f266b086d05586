"""Exit codes: 0 done; 1 a bug of ours; 2 a mistake that the user can mend; the rest are signals, counted as
shells count them.
"""

FAILED, USER_MISTAKE = 1, 2
INTERRUPTED, READER_GONE = 128 + 2, 128 + 13
