package runner

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

const (
	protocolVersion = 1
	protocolAPI     = "ollmlx.runner.v1"
	// maxHandshake bounds the line that an unknown program may make the host keep.
	maxHandshake = 64 << 10
)

// Handshake is the line with which a runner announces that its socket listens.
type Handshake struct {
	Protocol int    `json:"protocol"`
	API      string `json:"api"`
	// Engine is what the runner generates with, for example "mlx".
	Engine string `json:"engine"`
	PID    int    `json:"pid"`
	// Versions of what the runner is made of, by name: "ollmlx", "python", "mlx", "mlx-lm".
	Versions map[string]string `json:"versions"`
}

// errNoHandshake is what a runner that ended, or closed its handshake pipe, without a line comes to.
var errNoHandshake = errors.New("it ended before it announced itself")

// readHandshake reads the one line from the handshake pipe until ctx ends.
func readHandshake(ctx context.Context, pipe *os.File, engine string) (Handshake, error) {
	stop := context.AfterFunc(ctx, func() { pipe.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	var h Handshake
	line, err := bufio.NewReader(io.LimitReader(pipe, maxHandshake)).ReadBytes('\n')
	switch {
	case ctx.Err() != nil:
		return h, context.Cause(ctx)
	case len(line) == 0:
		return h, errNoHandshake
	case err != nil:
		return h, errdefs.New(errdefs.ErrInternal, "its handshake is not a line: %s", quoteShort(line))
	}
	if err := json.Unmarshal(line, &h); err != nil {
		return h, errdefs.New(errdefs.ErrInternal, "its handshake is not the JSON it should be: %s: %w", quoteShort(line), err)
	}
	return h, h.check(engine)
}

func (h Handshake) check(engine string) error {
	if h.Protocol != protocolVersion || h.API != protocolAPI {
		return errdefs.New(errdefs.ErrPrecondition,
			"it speaks protocol %d with API %q, this host speaks %d with %q; install the ollmlx binary and the ollmlx Python package from one release",
			h.Protocol, h.API, protocolVersion, protocolAPI)
	}
	if engine != "" && h.Engine != engine {
		return errdefs.New(errdefs.ErrInternal, "it announced the engine %q, not %q", h.Engine, engine)
	}
	return nil
}
