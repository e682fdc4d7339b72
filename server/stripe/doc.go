// Package stripe owns the decisions about the versions of a stripe's shards: what
// a member accepts (Admit), what a leader does about versions that are not known
// complete (Resolver), when overlays are folded (FoldPolicy). It has no clock, no
// network, no goroutine: events go in, actions come out; the server and the
// simulator carry them out.
//
// # Versions
//
// A shard's versions are ordered by tag; at one tag the overlay comes before the
// fold that has it in. The base is the highest complete Full version; what is
// below a complete Full version is superseded by it.
//
//	tag    1      2       3       4        5
//	      Full  overlay  Full   overlay  overlay
//	       |      |      base      |       |
//	       superseded              |       prepared: may become complete or nothing
//	                               complete: read over the base
//
// # What holds
//
//	I1  A version is made complete nowhere before every live member of its W has it.
//	I2  A member that promised a floor takes no tag up to it that it does not hold.
//	I3  A readable member holds every version of its W that is complete, or one that supersedes it.
//
// The client keeps I1 by waiting for all PREPAREs of W at one epoch of the slot, a
// leader by mending all live members of W before it commits. So one readable
// member of W that lacks a version, and promised to go on lacking it, proves that
// it is not and will never be complete: it may be dropped. Members that are not
// readable (they came back and may have missed or lost something) prove nothing.
package stripe
