package server

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

func TestLoadOptionsOfGGUFModels(t *testing.T) {
	for _, c := range []struct {
		name           string
		model, request map[string]any
		want           *runnerpb.LoadRequest
		fails          string
	}{
		{"nothing asked for", nil, map[string]any{"temperature": 0.5}, nil, ""},
		{"context of the model", map[string]any{"num_ctx": 8192.0}, nil, &runnerpb.LoadRequest{NumCtx: 8192}, ""},
		{"the request wins", map[string]any{"num_ctx": 8192.0}, map[string]any{"num_ctx": 2.0}, &runnerpb.LoadRequest{NumCtx: minContext}, ""},
		{"all of them", nil, map[string]any{
			"num_batch": 256.0, "num_gpu": 0.0, "main_gpu": 1.0, "use_mmap": false, "num_thread": 3.0, "use_mlock": true, "draft_num_predict": 5.0,
		}, &runnerpb.LoadRequest{
			NumBatch: 256, NumGpu: proto.Int32(0), MainGpu: proto.Uint32(1), UseMmap: proto.Bool(false), NumThread: 3, UseMlock: true, DraftNumPredict: 5,
		}, ""},
		{"as many layers as fit", nil, map[string]any{"num_gpu": -1.0}, nil, ""},
		{"negative threads", nil, map[string]any{"num_thread": -1.0}, nil, "num_thread"},
		{"no GPU", nil, map[string]any{"main_gpu": -1.0}, nil, "main_gpu"},
		{"lock of another type", nil, map[string]any{"use_mlock": "yes"}, nil, "use_mlock"},
		{"draft of another type", nil, map[string]any{"draft_num_predict": "5"}, nil, "draft_num_predict"},
	} {
		m := &store.Model{Format: store.FormatGGUF, Parameters: c.model}
		_, _, err := mergeOptions(quiet(), m, c.request)
		switch {
		case c.fails != "":
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%s: got %v, want an error about %s", c.name, err, c.fails)
			}
		case err != nil || !proto.Equal(m.Load, c.want):
			t.Errorf("%s: got %v, %v, want %v", c.name, m.Load, err, c.want)
		}
	}
	m := &store.Model{Format: store.FormatMLX}
	if _, _, err := mergeOptions(quiet(), m, map[string]any{"num_ctx": 8192.0, "num_gpu": 1.0}); err != nil || m.Load != nil {
		t.Errorf("got %v, %v, want no wishes for an MLX model: its context is each request's", m.Load, err)
	}
}
