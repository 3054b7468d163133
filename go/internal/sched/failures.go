package sched

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// Bounds of the pause after failed starts: none after the first, then doubling.
const (
	firstPause = time.Second
	maxPause   = 30 * time.Second
)

// failures is a circuit breaker for each model: it counts how often in a row its runner failed to start or died without
// having served a request. It keeps a broken model from being started again and again by clients that retry in a loop.
type failures map[string]*failure

type failure struct {
	name  string
	count int
	until time.Time
	last  error
}

// Failing is a model whose runner has failed and is not started before a pause is over.
type Failing struct {
	Model string
	// Count is how often in a row it failed.
	Count int
	// Until is when it is tried again.
	Until time.Time
	// Err is the last failure.
	Err error
}

func (f *Failing) Error() string {
	return fmt.Sprintf("%v (failed %d times in a row; it is tried again after %s)", f.Err, f.Count, f.RetryAfter().Round(100*time.Millisecond))
}

// RetryAfter is how long a client should wait.
func (f *Failing) RetryAfter() time.Duration { return max(time.Until(f.Until), 0) }

// Unwrap tells the kind: that of an error which says what is wrong with the model, else that a later attempt may succeed.
func (f *Failing) Unwrap() error {
	switch kind := errdefs.Kind(f.Err); kind {
	case errdefs.ErrInvalid, errdefs.ErrUnsupported, errdefs.ErrNotFound:
		return kind
	}
	return errdefs.ErrBusy
}

func (f failures) add(key, name string, err error, now time.Time) {
	x := f[key]
	if x == nil {
		x = &failure{}
		f[key] = x
	}
	x.name, x.last = name, err
	x.count++
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
	return x.failing()
}

func (x *failure) failing() *Failing {
	return &Failing{Model: x.name, Count: x.count, Until: x.until, Err: x.last}
}

// open returns the models that are not started for now.
func (f failures) open(now time.Time) []*Failing {
	var out []*Failing
	for _, x := range f {
		if now.Before(x.until) {
			out = append(out, x.failing())
		}
	}
	slices.SortFunc(out, func(a, b *Failing) int { return strings.Compare(a.Model, b.Model) })
	return out
}
