package cli

import (
	"context"
	"fmt"
	"net/http/httptrace"
	"net/textproto"
	"sync"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/server"
)

// loadPatience is how long a load goes on before its bar appears; quick ones are over by then.
const loadPatience = 500 * time.Millisecond

// loading shows on p how the load of a model goes that requests of the context wait for, until done is called.
func loading(ctx context.Context, p *reporter, model string) (_ context.Context, done func()) {
	var mu sync.Mutex
	ended := false
	began := time.Now()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		// It runs in the connection's goroutine.
		Got1xxResponse: func(_ int, header textproto.MIMEHeader) error {
			completed, total, ok := parseLoad(header.Get(server.LoadHeader))
			mu.Lock()
			defer mu.Unlock()
			if ok && !ended && time.Since(began) >= loadPatience {
				p.bar("load", "loading "+model, total, completed)
			}
			return nil
		},
	})
	return ctx, func() {
		mu.Lock()
		defer mu.Unlock()
		ended = true
	}
}

// parseLoad reads what a server tells of a load: bytes, where they are known.
func parseLoad(text string) (completed, total int64, ok bool) {
	var stage string
	_, err := fmt.Sscanf(text, "%s %d/%d", &stage, &completed, &total)
	return completed, total, err == nil && total > 0
}
