"""Redis as the store of a fleet; imported when it is asked for.

From the outside in: `backend` is what users make, `fleet` is one state as this process knows it, `workers` counts and
promises, `holds` knows how long a hold can be relied on, `replies` is what the store says, `link` is the thread that
talks to it, `clients` are what it talks through, `reasons` are what it says when something is wrong, `scripts` is what
runs inside the store, `urls` is how it is named.
"""
