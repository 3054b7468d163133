package runner

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// pumped returns the log that a runner's output becomes, a record a line: level, message, attributes.
func pumped(t *testing.T, output string) (records []string, tail string) {
	t.Helper()
	buf := &logBuffer{}
	handler := slog.NewTextHandler(buf, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(groups []string, attr slog.Attr) slog.Attr {
			if len(groups) == 0 && attr.Key == slog.TimeKey && attr.Value.Time().Year() != 2001 {
				return slog.Attr{}
			}
			return attr
		},
	})
	l := newLogs(slog.New(handler))
	l.pump(strings.NewReader(output))
	text := strings.TrimSuffix(buf.String(), "\n")
	if text == "" {
		return nil, l.tail.String()
	}
	return strings.Split(text, "\n"), l.tail.String()
}

func TestLogLines(t *testing.T) {
	tests := []struct {
		name, output string
		want         []string
	}{
		{"record", `{"ts": "2001-02-03T04:05:06.000007Z", "level": "warn", "logger": "a.b", "msg": "model loaded", "attrs": {"z": 1.5, "a": "x"}}`,
			[]string{`time=2001-02-03T04:05:06.000Z level=WARN msg="model loaded" logger=a.b a=x z=1.5`}},
		{"record without extras", `{"level": "debug", "msg": "m"}`, []string{`level=DEBUG msg=m`}},
		{"plain text", "hello\nworld\n", []string{`level=INFO msg=hello`, `level=INFO msg=world`}},
		{"no end of line", "last words", []string{`level=INFO msg="last words"`}},
		{"empty lines", "\n\r\n\n", nil},
		{"carriage return", "text\r\n", []string{`level=INFO msg=text`}},
		{"JSON of another form", `{"message": "x"}`, []string{`level=INFO msg="{\"message\": \"x\"}"`}},
		{"message of another type", `{"level": "info", "msg": 5}`, []string{`level=INFO msg="{\"level\": \"info\", \"msg\": 5}"`}},
		{"unknown level", `{"level": "loud", "msg": "x"}`, []string{`level=INFO msg="{\"level\": \"loud\", \"msg\": \"x\"}"`}},
		{"cut JSON", `{"level": "info", "ms`, []string{`level=INFO msg="{\"level\": \"info\", \"ms"`}},
		{"not UTF-8", "a\xff\xfeb\n", []string{"level=INFO msg=\"a\uFFFDb\""}},
		{"traceback", "before\nTraceback (most recent call last):\n  File \"x.py\", line 1\n    boom()\nboom\nafter\n", []string{
			`level=INFO msg=before`,
			`level=WARN msg="Traceback (most recent call last):"`,
			`level=WARN msg="  File \"x.py\", line 1"`,
			`level=WARN msg="    boom()"`,
			`level=WARN msg=boom`,
			`level=INFO msg=after`,
		}},
		{"fatal", "Fatal Python error: Segmentation fault\n", []string{`level=WARN msg="Fatal Python error: Segmentation fault"`}},
		{"C++", "libc++abi: terminating due to uncaught exception\n",
			[]string{`level=WARN msg="libc++abi: terminating due to uncaught exception"`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, _ := pumped(t, tt.output)
			if strings.Join(got, "\n") != strings.Join(tt.want, "\n") {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
}

func TestLongLogLineIsCut(t *testing.T) {
	got, tail := pumped(t, strings.Repeat("x", 5*maxLogLine)+"\nnext\n")
	if len(got) != 2 || len(got[0]) > maxLogLine+100 || !strings.HasSuffix(got[0], `[cut]"`) {
		t.Errorf("got %d records, the first of %d bytes", len(got), len(got[0]))
	}
	if got[1] != "level=INFO msg=next" {
		t.Errorf("the line after the long one is %q", got[1])
	}
	if len(tail) > tailSize {
		t.Errorf("the tail has %d bytes", len(tail))
	}
}

func TestLogLineOfExactlyTheLimit(t *testing.T) {
	for _, n := range []int{maxLogLine - 1, maxLogLine, maxLogLine + 1} {
		got, _ := pumped(t, strings.Repeat("x", n)+"\nnext\n")
		if len(got) != 2 || got[1] != "level=INFO msg=next" {
			t.Errorf("a line of %d bytes: %d records", n, len(got))
		}
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	var output strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&output, "line %d\n", i)
	}
	output.WriteString(`{"level": "error", "logger": "l", "msg": "broke", "attrs": {"code": 7}}` + "\n")
	_, tail := pumped(t, output.String())
	if len(tail) > tailSize || len(tail) < tailSize-100 {
		t.Errorf("the tail has %d bytes, want nearly %d", len(tail), tailSize)
	}
	if want := "line 1999\nerror: broke code=7"; !strings.HasSuffix(tail, want) {
		t.Errorf("the tail ends with %q, want %q", tail[max(0, len(tail)-60):], want)
	}
	if !strings.HasPrefix(tail, "line ") {
		t.Errorf("the tail begins within a line: %q", tail[:20])
	}
}
