// Package sim is a network of RDMA devices in this process, a provider of verbs
// with the semantics that programs depend on: packets in PSN order, receivers
// that are not ready, remote access checks, everything flushed on an error,
// limits, completions that make no event unless armed before.
//
//	Fabric -- device a -- QP 17 -- send queue: head is being sent
//	   |                              | request (PSN), answer or none
//	   +----- device b -- QP 17 -- receive queue, regions
//
// A message is sent as a whole; it takes as many PSNs as it has packets. Fault
// decides what happens to each attempt. What a device leaves undefined in a
// completion with an error is filled with garbage.
package sim
