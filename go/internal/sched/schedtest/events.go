package schedtest

import (
	"google.golang.org/grpc/codes"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// Delta is an event that carries d.
func Delta(d *runnerpb.Delta) *runnerpb.Event {
	return &runnerpb.Event{Kind: &runnerpb.Event_Delta{Delta: d}}
}

// Content is an event with one token of answer.
func Content(text string) *runnerpb.Event {
	return Delta(&runnerpb.Delta{Content: text, Tokens: 1})
}

// Thinking is an event with one token of reasoning.
func Thinking(text string) *runnerpb.Event {
	return Delta(&runnerpb.Delta{Thinking: text, Tokens: 1})
}

// Finished is the event that ends an answer well.
func Finished(reason runnerpb.Finished_Reason, usage *runnerpb.Usage) *runnerpb.Event {
	return &runnerpb.Event{Kind: &runnerpb.Event_Finished{Finished: &runnerpb.Finished{Reason: reason, Usage: usage}}}
}

// Stop is Finished because the model ended its answer, with invented usage.
func Stop() *runnerpb.Event {
	return Finished(runnerpb.Finished_REASON_STOP, &runnerpb.Usage{PromptTokens: 5, CompletionTokens: 3, PrefillNs: 2_000_000, DecodeNs: 3_000_000})
}

// Failed is the event that ends a request with an error.
func Failed(code codes.Code, msg string) *runnerpb.Event {
	return &runnerpb.Event{Kind: &runnerpb.Event_Failed{Failed: &runnerpb.Failed{Code: int32(code), Message: msg}}}
}

// Prefill is an event about the progress of the prompt.
func Prefill(done, total uint32) *runnerpb.Event {
	return &runnerpb.Event{Kind: &runnerpb.Event_Prefill{Prefill: &runnerpb.Prefill{TokensDone: done, TokensTotal: total}}}
}

func codeOf(f *runnerpb.Failed) codes.Code { return codes.Code(f.GetCode()) }
