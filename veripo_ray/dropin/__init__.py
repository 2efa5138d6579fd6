"""The verifier's reward inside other trainers: TRL (`trl`), verl (`verl`), OpenRLHF (its endpoint).

README.md beside this file has an example of each that runs.
"""
