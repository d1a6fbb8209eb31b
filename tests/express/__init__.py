"""The express lane: it may change nothing but the cost of an exchange.

cases              random requests and responses, from a seed
pair               one gateway with the lane and one without, each with an upstream that follows a case
test_differential  the same cases through both
test_hand_over     the exchanges that the lane hands over to the normal path
"""
