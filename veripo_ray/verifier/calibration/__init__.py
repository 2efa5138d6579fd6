"""How good a judge is: measured on labelled cases, with intervals, thresholds and what it costs."""
