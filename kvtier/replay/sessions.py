"""Which requests belong together: as the trace says, or from what they share."""

from __future__ import annotations

from array import array

from kvtier.replay.trace import NO_SESSION, Trace


def sessions_of(trace: Trace) -> array[int]:
    """By request: the number of its session.

    Where the trace does not say, a request goes on with the session of the last one to use the deepest block that it
    finds, if it has more than half of that one's blocks and no other went on from there; else it starts a session.
    """
    if NO_SESSION not in trace.sessions:
        return trace.sessions
    result = array("q")
    last_user = array("I", bytes(4 * (trace.unique + 1)))  # by block: request, from 1
    went_on = bytearray(len(trace) + 1)
    count = max(trace.sessions, default=NO_SESSION) + 1
    for request in range(len(trace)):
        chain = trace.chain(request)
        shared = next((i for i, block in enumerate(chain) if not last_user[block]), len(chain))
        before = last_user[chain[shared - 1]] if shared else 0
        session = trace.sessions[request]
        if session == NO_SESSION and before and not went_on[before]:
            length = trace.starts[before] - trace.starts[before - 1]
            if 2 * shared > length:
                session = result[before - 1]
                went_on[before] = 1
        if session == NO_SESSION:
            session, count = count, count + 1
        result.append(session)
        for block in chain:
            last_user[block] = request + 1
    return result
