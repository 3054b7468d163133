package server

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// LoadHeader is how a client asks to be told how the load of a model goes, with the value "progress", and what tells it:
// informational responses (102) have it with "STAGE DONE/TOTAL" in bytes. They come before the response itself, so its
// status stays open for an error, and clients that did not ask never see one.
const LoadHeader = "Ollmlx-Load"

// loadInterval is the least time between two informational responses of a request.
const loadInterval = 100 * time.Millisecond

type loadProgressKey struct{}

// withLoadProgress lets a request that asks for it be told of a load that it waits for.
func withLoadProgress(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(LoadHeader) == "progress" && r.ProtoAtLeast(1, 1) {
			r = r.WithContext(context.WithValue(r.Context(), loadProgressKey{}, tellLoad(w)))
		}
		next.ServeHTTP(w, r)
	})
}

// loadProgress is what the request of ctx wants to be told by; nil if it does not.
func loadProgress(ctx context.Context) func(*runnerpb.LoadProgress) {
	tell, _ := ctx.Value(loadProgressKey{}).(func(*runnerpb.LoadProgress))
	return tell
}

func tellLoad(w http.ResponseWriter) func(*runnerpb.LoadProgress) {
	var last time.Time
	var stage runnerpb.LoadProgress_Stage
	return func(p *runnerpb.LoadProgress) {
		if p.GetStage() == stage && time.Since(last) < loadInterval {
			return
		}
		last, stage = time.Now(), p.GetStage()
		w.Header().Set(LoadHeader, fmt.Sprintf("%s %d/%d", stageName(stage), p.GetBytesDone(), p.GetBytesTotal()))
		w.WriteHeader(http.StatusProcessing)
		// The response itself does not carry it.
		w.Header().Del(LoadHeader)
	}
}

// stageName is a stage of a load as users read it: "weights" for STAGE_WEIGHTS.
func stageName(s runnerpb.LoadProgress_Stage) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "STAGE_"))
}
