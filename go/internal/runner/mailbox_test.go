package runner

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

func deltaEvent(d *runnerpb.Delta) *runnerpb.Event {
	return &runnerpb.Event{RequestId: 1, Kind: &runnerpb.Event_Delta{Delta: d}}
}

func TestMailboxJoinsDeltasWhileTheReaderIsSlow(t *testing.T) {
	m := newMailbox()
	for i := range 1000 {
		m.put(deltaEvent(&runnerpb.Delta{Content: fmt.Sprint(i, " "), Tokens: 2, Logprobs: []*runnerpb.TokenLogprob{{Id: uint32(i)}}}))
	}
	m.put(&runnerpb.Event{Kind: &runnerpb.Event_Finished{Finished: &runnerpb.Finished{}}})
	m.end(io.EOF)
	if got := len(m.queue); got != 2 {
		t.Fatalf("%d events wait, want one delta and the end", got)
	}
	ev, err := m.take()
	if err != nil {
		t.Fatal(err)
	}
	d := ev.GetDelta()
	if !strings.HasPrefix(d.GetContent(), "0 1 2 ") || !strings.HasSuffix(d.GetContent(), " 998 999 ") {
		t.Errorf("content is %.20q...", d.GetContent())
	}
	if d.GetTokens() != 2000 || len(d.GetLogprobs()) != 1000 || d.GetLogprobs()[999].GetId() != 999 {
		t.Errorf("got %d tokens and %d logprobs", d.GetTokens(), len(d.GetLogprobs()))
	}
	if ev, err := m.take(); err != nil || ev.GetFinished() == nil {
		t.Errorf("got %v, %v, want Finished", ev, err)
	}
	for range 2 {
		if _, err := m.take(); err != io.EOF {
			t.Errorf("got %v, want io.EOF", err)
		}
	}
}

func TestMailboxKeepsTheNewestPrefill(t *testing.T) {
	m := newMailbox()
	for i := range uint32(5) {
		m.put(&runnerpb.Event{Kind: &runnerpb.Event_Prefill{Prefill: &runnerpb.Prefill{TokensDone: i, TokensTotal: 4}}})
	}
	m.put(deltaEvent(&runnerpb.Delta{Content: "x"}))
	ev, err := m.take()
	if err != nil || ev.GetPrefill().GetTokensDone() != 4 {
		t.Errorf("got %v, %v, want the last prefill", ev, err)
	}
	if ev, err := m.take(); err != nil || ev.GetDelta().GetContent() != "x" {
		t.Errorf("got %v, %v, want the delta", ev, err)
	}
}

func TestMailboxEndAndAbort(t *testing.T) {
	first, second := errors.New("first"), errors.New("second")
	t.Run("end comes after what is there", func(t *testing.T) {
		m := newMailbox()
		m.put(deltaEvent(&runnerpb.Delta{Content: "x"}))
		m.end(first)
		m.end(second)
		m.put(deltaEvent(&runnerpb.Delta{Content: "late"}))
		if ev, err := m.take(); err != nil || ev.GetDelta().GetContent() != "x" {
			t.Errorf("got %v, %v", ev, err)
		}
		if _, err := m.take(); err != first {
			t.Errorf("got %v, want the first end", err)
		}
	})
	t.Run("abort comes first", func(t *testing.T) {
		m := newMailbox()
		m.put(deltaEvent(&runnerpb.Delta{Content: "x"}))
		m.abort(first)
		if _, err := m.take(); err != first {
			t.Errorf("got %v, want the abort", err)
		}
	})
	t.Run("wakes a reader", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := newMailbox()
			go func() {
				synctest.Wait() // until the reader waits
				m.end(first)
			}()
			if _, err := m.take(); err != first {
				t.Errorf("got %v", err)
			}
		})
	})
}

// TestMailboxKeepsOrder compares random deltas, taken at random times, with what a reader that is never slow would pass on.
func TestMailboxKeepsOrder(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		m := newMailbox()
		var want, got transcript
		calls := uint32(0)
		for i := range 200 {
			d := &runnerpb.Delta{Tokens: 1}
			switch rnd.IntN(8) {
			case 0:
				d.Thinking = fmt.Sprint("t", i)
			case 1:
				d.Thinking, d.Content = fmt.Sprint("t", i), fmt.Sprint("c", i)
			case 2:
				d.ToolCalls = []*runnerpb.ToolCall{{Index: calls}}
				calls++
			case 3: // held back
			default:
				d.Content = fmt.Sprint("c", i)
			}
			want.pass(d)
			m.put(deltaEvent(d))
			for rnd.IntN(4) == 0 && m.head < len(m.queue) {
				ev, _ := m.take()
				got.pass(ev.GetDelta())
			}
		}
		m.end(io.EOF)
		for ev, err := m.take(); err == nil; ev, err = m.take() {
			got.pass(ev.GetDelta())
		}
		if got.String() != want.String() || got.tokens != want.tokens {
			t.Fatalf("seed %d: got %d tokens\n%s\nwant %d\n%s", seed, got.tokens, got.String(), want.tokens, want.String())
		}
	}
}

// transcript is what a reader of deltas passes on, without the cuts between deltas.
type transcript struct {
	strings.Builder
	last   string
	tokens uint32
}

func (tr *transcript) pass(d *runnerpb.Delta) {
	tr.tokens += d.GetTokens()
	tr.part("thinking", d.GetThinking())
	tr.part("content", d.GetContent())
	for _, call := range d.GetToolCalls() {
		tr.part("tools", fmt.Sprint(call.GetIndex(), ","))
	}
}

func (tr *transcript) part(kind, text string) {
	if text == "" {
		return
	}
	if kind != tr.last {
		fmt.Fprintf(tr, "\n%s: ", kind)
		tr.last = kind
	}
	tr.WriteString(text)
}
