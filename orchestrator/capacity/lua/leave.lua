-- Who waited in line does so no more. ARGV: session. If it has a slot by now, it keeps that.

give_up(ARGV[1])
