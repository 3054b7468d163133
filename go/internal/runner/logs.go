package runner

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxLogLine is where a line is cut: a program that writes without line ends must not fill the host's memory.
	maxLogLine = 64 << 10
	// tailSize is how much of the end of the log is kept for error messages.
	tailSize = 8 << 10
	// tailLine is how much of one line the tail keeps, so that one line does not push out all others.
	tailLine = 2 << 10
)

// logs turns what a runner writes on stdout and stderr into log records, and keeps its end.
type logs struct {
	// logger is exchanged when a runner that waited is given a model.
	logger atomic.Pointer[slog.Logger]
	tail   tail
}

func newLogs(logger *slog.Logger) *logs {
	l := &logs{}
	l.logger.Store(logger)
	return l
}

// pump reads r to its end. Each pipe has a pump of its own.
func (l *logs) pump(r io.Reader) {
	lines := bufio.NewReaderSize(r, maxLogLine)
	var trace traceback
	for {
		line, err := lines.ReadSlice('\n')
		cut := err == bufio.ErrBufferFull
		if text := printable(line); text != "" {
			if cut {
				text += " [cut]"
			}
			l.line(text, &trace)
		}
		for err == bufio.ErrBufferFull {
			_, err = lines.ReadSlice('\n')
		}
		if err != nil {
			return
		}
	}
}

func (l *logs) line(text string, trace *traceback) {
	if record, ok := parseRecord(text); ok {
		l.tail.add(tailText(record))
		l.handle(record)
		return
	}
	l.tail.add(text)
	level := slog.LevelInfo
	if trace.has(text) || looksFatal(text) {
		level = slog.LevelWarn
	}
	l.handle(slog.NewRecord(time.Now(), level, text, 0))
}

func (l *logs) handle(record slog.Record) {
	ctx := context.Background()
	if handler := l.logger.Load().Handler(); handler.Enabled(ctx, record.Level) {
		// A handler that fails has nowhere to report it.
		_ = handler.Handle(ctx, record)
	}
}

// printable returns a line as valid text without its end.
func printable(line []byte) string {
	return strings.ToValidUTF8(string(bytes.TrimRight(line, "\r\n")), "\uFFFD")
}

// logLine is the form of a line of a runner's own logging.
type logLine struct {
	TS     time.Time      `json:"ts"`
	Level  string         `json:"level"`
	Logger string         `json:"logger"`
	Msg    string         `json:"msg"`
	Attrs  map[string]any `json:"attrs"`
}

var levels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
}

// parseRecord turns a line of JSON logging into a record; false if the line is anything else.
func parseRecord(text string) (slog.Record, bool) {
	if !strings.HasPrefix(text, "{") {
		return slog.Record{}, false
	}
	var line logLine
	if err := json.Unmarshal([]byte(text), &line); err != nil {
		return slog.Record{}, false
	}
	level, ok := levels[line.Level]
	if !ok || line.Msg == "" {
		return slog.Record{}, false
	}
	if line.TS.IsZero() {
		line.TS = time.Now()
	}
	record := slog.NewRecord(line.TS, level, line.Msg, 0)
	if line.Logger != "" {
		record.AddAttrs(slog.String("logger", line.Logger))
	}
	for _, key := range slices.Sorted(maps.Keys(line.Attrs)) {
		record.AddAttrs(slog.Any(key, line.Attrs[key]))
	}
	return record, true
}

// tailText is how a record reads in an error message.
func tailText(record slog.Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", strings.ToLower(record.Level.String()), record.Message)
	record.Attrs(func(attr slog.Attr) bool {
		if attr.Key != "logger" {
			fmt.Fprintf(&b, " %s=%v", attr.Key, attr.Value)
		}
		return true
	})
	return b.String()
}

// traceback follows Python tracebacks: from their heading over the indented lines to the line that names the exception.
type traceback struct{ inside bool }

func (t *traceback) has(line string) bool {
	if strings.HasPrefix(line, "Traceback (most recent call last)") {
		t.inside = true
		return true
	}
	if !t.inside {
		return false
	}
	t.inside = strings.HasPrefix(line, " ")
	return true
}

var fatalMarks = []string{
	"Fatal Python error", "fatal error", "Segmentation fault", "libc++abi:", "terminate called", "panic:", "Assertion failed",
	"Error: ", "ERROR: ",
}

func looksFatal(line string) bool {
	return slices.ContainsFunc(fatalMarks, func(mark string) bool { return strings.Contains(line, mark) })
}

// tail keeps the last lines of a log, tailSize bytes at most.
type tail struct {
	mu    sync.Mutex
	lines []string
	size  int
}

func (t *tail) add(line string) {
	if len(line) > tailLine {
		line = strings.ToValidUTF8(line[:tailLine], "") + " [cut]"
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, line)
	t.size += len(line) + 1
	drop := 0
	for t.size > tailSize {
		t.size -= len(t.lines[drop]) + 1
		drop++
	}
	t.lines = slices.Delete(t.lines, 0, drop)
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.lines, "\n")
}

// quoteShort quotes the beginning of unknown bytes for an error message.
func quoteShort(b []byte) string {
	const most = 200
	if len(b) <= most {
		return fmt.Sprintf("%q", b)
	}
	return fmt.Sprintf("%q...", b[:most])
}
