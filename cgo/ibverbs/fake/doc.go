// Package fake is a libibverbs in C without a device: a table of its functions
// and contexts whose ops it fills, so that the true cgo path runs in any process.
//
//	verbs -> ibverbs.PostSend -> qp->context->ops.post_send = fake_post_send
//	                                 queue -> one thread a context -> regions, queues of the peer
//
// It has two devices, fake0 at 10.0.0.1 and fake1 at 10.0.0.2, which reach each
// other and themselves, with the semantics of RC queue pairs that verbs/verbstest checks.
// What a device leaves undefined in a completion with an error is garbage.
package fake
