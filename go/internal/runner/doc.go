// Package runner supervises one runner: a process that holds one model and generates with it, spoken to by gRPC over a
// unix socket as docs/runner-protocol.md specifies.
//
// The idea: a Runner is made by Start, given its model by Load, used by Generate and the other calls, and ended by Stop
// or by its own death; it is never restarted, a new one is. The invariants: a runner does not outlive its host, however
// that ends; a Runner whose Done is closed has left no process, no socket and no goroutine behind; and every Stream ends,
// with Finished or with an error that tells why.
package runner
