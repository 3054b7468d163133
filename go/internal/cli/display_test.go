package cli

import (
	"strings"
	"testing"

	"github.com/ollama/ollama/api"
)

func TestWrapper(t *testing.T) {
	tests := []struct {
		name, in, want string
		width          int
	}{
		{"passes everything without a width", "one two  three\n", "one two  three\n", 0},
		{"breaks between words", "one two three four", "one two\nthree four", 10},
		{"a word that fits exactly stays", "12345 6789", "12345 6789", 10},
		{"the break stands for the blank", "1234567890 abc", "1234567890\nabc", 10},
		{"keeps line breaks and indentation", "a\n\n    b\n", "a\n\n    b\n", 20},
		{"cuts a word longer than a line", "abcdefghijklmnop", "abcdefghij\nklmnop", 10},
		{"breaks wide characters anywhere", "日本語日本語", "日本語日本\n語", 10},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, size := range []int{1, 3, len(tt.in)} { // however the stream cuts the text
				var sb strings.Builder
				p := &wrapper{w: &sb, width: tt.width}
				runes := []rune(tt.in)
				for len(runes) > 0 {
					n := min(size, len(runes))
					p.write(string(runes[:n]))
					runes = runes[n:]
				}
				p.flush()
				if got := sb.String(); got != tt.want {
					t.Errorf("in pieces of %d: got %q, want %q", size, got, tt.want)
				}
			}
		})
	}
}

func TestAnswerCallsBackOnceAndColoursThinking(t *testing.T) {
	var sb strings.Builder
	calls := 0
	d := &answer{out: &wrapper{w: &sb}, onFirst: func() { calls++ }}
	d.add("", "", nil)
	if calls != 0 {
		t.Error("an empty message is not the beginning of the answer")
	}
	d.add("hm", "", nil)
	d.add("", "yes", nil)
	d.end()
	if calls != 1 {
		t.Errorf("got %d calls, want 1", calls)
	}
	if got := sb.String(); !strings.Contains(got, "\x1b[") || !strings.HasSuffix(got, "yes") {
		t.Errorf("got %q", got)
	}
}

func TestAnswerShowsToolCalls(t *testing.T) {
	arguments := api.NewToolCallFunctionArguments()
	arguments.Set("city", "Oslo")
	var sb strings.Builder
	d := &answer{out: &wrapper{w: &sb}, plain: true}
	d.add("", "", []api.ToolCall{{Function: api.ToolCallFunction{Name: "weather", Arguments: arguments}}})
	d.end()
	if want := "Model called a tool: weather({\"city\":\"Oslo\"})\n"; sb.String() != want {
		t.Errorf("got %q, want %q", sb.String(), want)
	}
}
