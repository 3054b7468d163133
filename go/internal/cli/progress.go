package cli

import (
	"fmt"
	"io"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/progress"
)

// reporter shows how long work goes on: bars and spinners on a terminal, one plain line for each new
// status elsewhere. It must be stopped.
type reporter struct {
	w       io.Writer
	display *progress.Progress // nil if not on a terminal
	bars    map[string]*progress.Bar
	spinner *progress.Spinner
	status  string
}

func (a *app) newProgress() *reporter {
	r := &reporter{w: a.err, bars: make(map[string]*progress.Bar)}
	if a.errTTY {
		r.display = progress.NewProgress(a.err)
	}
	return r
}

// update shows one progress message of the server; label names the bar of a message about a blob.
func (r *reporter) update(m api.ProgressResponse, label string) {
	if m.Digest != "" && m.Total > 0 {
		r.bar(m.Digest, label, m.Total, m.Completed)
		return
	}
	r.say(m.Status)
}

// say shows a status, unless it is shown already.
func (r *reporter) say(status string) {
	if status == r.status || status == "" {
		return
	}
	r.status = status
	if r.display == nil {
		fmt.Fprintln(r.w, status)
		return
	}
	r.stopSpinner()
	r.spinner = progress.NewSpinner(status)
	r.display.Add(status, r.spinner)
}

func (r *reporter) bar(key, label string, total, completed int64) {
	if r.display == nil {
		// Layers come side by side; each is told once.
		if _, told := r.bars[key]; !told {
			r.bars[key] = nil
			r.say(label)
		}
		return
	}
	// A layer is announced before its transfer begins; a bar at 0 % for each would only be noise.
	if completed == 0 {
		return
	}
	b, ok := r.bars[key]
	if !ok {
		r.stopSpinner()
		b = progress.NewBar(label, total, completed)
		r.bars[key] = b
		r.display.Add(key, b)
	}
	b.Set(completed)
}

func (r *reporter) stopSpinner() {
	if r.spinner != nil {
		r.spinner.Stop()
	}
}

// stop leaves what is shown on the screen.
func (r *reporter) stop() {
	if r.display != nil {
		r.display.Stop()
		r.display = nil
	}
}

// clear removes what is shown from the screen.
func (r *reporter) clear() {
	if r.display != nil {
		r.display.StopAndClear()
		r.display = nil
	}
}
