package sched

import (
	"time"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// Bounds of the pause after failed starts: none after the first, then doubling.
const (
	firstPause = time.Second
	maxPause   = 30 * time.Second
)

// failures counts, for each model, how often in a row its runner failed to start or died without having served a
// request. It keeps a broken model from being started again and again by a client that retries in a loop.
type failures map[string]*failure

type failure struct {
	count int
	until time.Time
	last  error
}

func (f failures) add(key string, err error, now time.Time) {
	x := f[key]
	if x == nil {
		x = &failure{}
		f[key] = x
	}
	x.count++
	x.last = err
	if x.count > 1 {
		// The shift is bounded so that it cannot overflow.
		x.until = now.Add(min(firstPause<<min(x.count-2, 10), maxPause))
	}
}

func (f failures) forget(key string) { delete(f, key) }

// check returns why a start has to wait, nil if it need not.
func (f failures) check(key string, now time.Time) error {
	x := f[key]
	if x == nil || !now.Before(x.until) {
		return nil
	}
	return errdefs.New(errdefs.Kind(x.last), "%w (failed %d times in a row; it is tried again after %s)",
		x.last, x.count, x.until.Sub(now).Round(100*time.Millisecond))
}
