"""Hours of mixed work in minutes: does memory stay flat, and do threads and files go away?

``make soak`` runs it; `activities` is the work, `sampler` measures the process, `trend` fits the slope.
"""
