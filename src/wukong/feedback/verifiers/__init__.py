"""Rewards that check: each compares a response with what its prompt brings along, and gives 1 or 0, or a share.

They are named wherever a judge or a reward is: `exact`, `number`, `regex`, `json`, `constraints`.
"""
