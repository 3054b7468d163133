package runner

import (
	"errors"
	"io"
	"testing"

	"google.golang.org/grpc"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// testSession is a session without a stream, with one request that was sent.
func testSession() (*session, *Stream) {
	s := &session{streams: make(map[uint64]*Stream), done: make(chan struct{})}
	s.sendable.L = &s.mu
	st := &Stream{id: 7, session: s, box: newMailbox(), unwatch: func() bool { return true }, sent: true}
	s.streams[st.id] = st
	return s, st
}

func TestEventOfUnknownKind(t *testing.T) {
	s, st := testSession()
	s.dispatch(&runnerpb.StepEvents{Events: []*runnerpb.Event{{RequestId: 7}}})
	if _, err := st.Recv(); !errors.Is(err, errdefs.ErrInternal) {
		t.Errorf("got %v, want an internal error", err)
	}
	if len(s.outbox) != 1 || s.outbox[0].id != 7 || s.outbox[0].request != nil {
		t.Errorf("the runner is not told to end the request: %v", s.outbox)
	}
}

func TestEventsAfterTheLast(t *testing.T) {
	s, st := testSession()
	finished := &runnerpb.Event{RequestId: 7, Kind: &runnerpb.Event_Finished{Finished: &runnerpb.Finished{}}}
	late := deltaEvent(&runnerpb.Delta{Content: "late"})
	late.RequestId = 7
	unknown := deltaEvent(&runnerpb.Delta{Content: "unknown"})
	unknown.RequestId = 8
	s.dispatch(&runnerpb.StepEvents{Events: []*runnerpb.Event{unknown, finished, late, finished}})
	if ev, err := st.Recv(); err != nil || ev.GetFinished() == nil {
		t.Errorf("got %v, %v, want Finished", ev, err)
	}
	if ev, err := st.Recv(); err != io.EOF {
		t.Errorf("got %v, %v, want io.EOF", ev, err)
	}
	if st.Close(); len(s.outbox) != 0 {
		t.Errorf("a request that has ended is cancelled: %v", s.outbox)
	}
}

func TestRequestCancelledBeforeItWasSent(t *testing.T) {
	s, st := testSession()
	st.sent = false
	s.outbox = []outgoing{{id: 7, request: &grpc.PreparedMsg{}}}
	st.Close()
	s.close(errors.New("closed"))
	if out, ok := s.next(); ok {
		t.Errorf("the runner is told of a request that has ended: %v", out)
	}
}

func TestClosedSessionSendsWhatIsLeft(t *testing.T) {
	s, st := testSession()
	s.close(errors.New("closed"))
	st.Close()
	if out, ok := s.next(); !ok || out.id != 7 {
		t.Errorf("got %v, %t, want the cancellation", out, ok)
	}
	if _, ok := s.next(); ok {
		t.Error("a closed session has more to send")
	}
}
