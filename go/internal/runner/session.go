package runner

import (
	"cmp"
	"context"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// sessionStream is the host's end of the Session call.
type sessionStream = grpc.BidiStreamingClient[runnerpb.SessionRequest, runnerpb.StepEvents]

// session multiplexes the requests of a runner over one Session stream.
//
// Lifecycle: newSession starts a reader and a writer; both end when the stream does, which fails every request that is in
// it. The reader puts events into mailboxes and waits for nobody but the stream. The writer alone sends, from a queue, so
// a cancellation never waits behind the flow control of a request. A request is in streams from submit until its last
// event, its cancellation or the break; what comes for an id that is not there belongs to a cancelled one and is dropped.
type session struct {
	stream sessionStream
	// broke tells the requests why the stream ended.
	broke func(error) error

	mu      sync.Mutex
	streams map[uint64]*Stream
	lastID  uint64
	outbox  []outgoing
	// sendable is signalled when the outbox, closed or err has changed.
	sendable sync.Cond
	// closed is set once the session takes no more requests; those that are in it go on.
	closed error
	// err is set once every request in it has ended.
	err error
	// done is closed when the reader has ended.
	done chan struct{}
}

// outgoing is a message for the writer: the beginning of a request, encoded, or with a nil message its end.
type outgoing struct {
	id      uint64
	request *grpc.PreparedMsg
}

func newSession(stream sessionStream, broke func(error) error) *session {
	s := &session{stream: stream, broke: broke, streams: make(map[uint64]*Stream), done: make(chan struct{})}
	s.sendable.L = &s.mu
	go s.read()
	go s.write()
	return s
}

// submit begins a request. It is encoded here and not by the writer, so that a message that cannot be encoded fails
// alone instead of breaking the stream, and so that the caller may change it afterwards.
func (s *session) submit(ctx context.Context, req *runnerpb.GenerateRequest) (*Stream, error) {
	s.mu.Lock()
	s.lastID++
	id := s.lastID
	s.mu.Unlock()

	msg := &runnerpb.SessionRequest{
		RequestId: id, Action: &runnerpb.SessionRequest_Generate{Generate: req},
	}
	if size := proto.Size(msg); size > maxMessage {
		return nil, errdefs.New(errdefs.ErrTooLarge, "the request has %d bytes, a model runner takes %d at most", size, maxMessage)
	}
	encoded := &grpc.PreparedMsg{}
	if err := encoded.Encode(s.stream, msg); err != nil {
		return nil, errdefs.New(errdefs.ErrInvalid, "the request cannot be sent to the model runner: %w", errdefs.FromGRPC(err))
	}

	st := &Stream{id: id, session: s, box: newMailbox()}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := cmp.Or(s.err, s.closed); err != nil {
		return nil, err
	}
	s.streams[id] = st
	s.outbox = append(s.outbox, outgoing{id, encoded})
	s.sendable.Signal()
	// Not before the stream is known: ctx may have ended already, and its end must find the stream.
	st.unwatch = context.AfterFunc(ctx, func() { st.abort(canceledError(ctx)) })
	return st, nil
}

// forget takes a request out of the session and has the runner end it, if it knows of it and has not ended it.
func (s *session) forget(st *Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams[st.id] == nil {
		return
	}
	delete(s.streams, st.id)
	st.unwatch()
	s.cancel(st)
}

// cancel has the runner end a request that it has been told of. s.mu is held.
func (s *session) cancel(st *Stream) {
	if st.sent {
		s.outbox = append(s.outbox, outgoing{id: st.id})
		s.sendable.Signal()
	}
}

// write sends what is in the outbox until the session ends.
func (s *session) write() {
	for {
		out, ok := s.next()
		if !ok {
			// Tells the runner, if it still listens, that nothing follows.
			_ = s.stream.CloseSend()
			return
		}
		var err error
		if out.request != nil {
			err = s.stream.SendMsg(out.request)
		} else {
			err = s.stream.Send(&runnerpb.SessionRequest{
				RequestId: out.id, Action: &runnerpb.SessionRequest_Cancel{Cancel: &runnerpb.Cancel{}},
			})
		}
		if err != nil {
			// The reader learns why.
			return
		}
	}
}

// next waits for the next message to send; false when the session has ended.
func (s *session) next() (outgoing, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.err != nil {
			return outgoing{}, false
		}
		if len(s.outbox) == 0 {
			if s.closed != nil {
				return outgoing{}, false
			}
			s.outbox = nil
			s.sendable.Wait()
			continue
		}
		out := s.outbox[0]
		s.outbox[0] = outgoing{}
		s.outbox = s.outbox[1:]
		if out.request == nil {
			return out, true
		}
		// A request that was cancelled before it was sent is not sent at all.
		if st := s.streams[out.id]; st != nil {
			st.sent = true
			return out, true
		}
	}
}

// read dispatches events until the stream ends.
func (s *session) read() {
	defer close(s.done)
	for {
		step, err := s.stream.Recv()
		if err != nil {
			s.end(s.broke(err))
			return
		}
		s.dispatch(step)
	}
}

func (s *session) dispatch(step *runnerpb.StepEvents) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, event := range step.GetEvents() {
		st := s.streams[event.GetRequestId()]
		if st == nil {
			continue
		}
		if last := lastError(event); last != nil {
			delete(s.streams, st.id)
			st.unwatch()
			st.finish(event, last)
			if event.GetFinished() == nil && event.GetFailed() == nil {
				// An event of no known kind has ended the request here, but not in the runner.
				s.cancel(st)
			}
			continue
		}
		st.box.put(event)
	}
}

// lastError returns what Recv returns after an event that is the last of its request, nil if it is not.
func lastError(event *runnerpb.Event) error {
	switch kind := event.GetKind().(type) {
	case *runnerpb.Event_Prefill, *runnerpb.Event_Delta:
		return nil
	case *runnerpb.Event_Finished:
		return io.EOF
	case *runnerpb.Event_Failed:
		code := codes.Code(kind.Failed.GetCode())
		if code == codes.OK {
			code = codes.Internal
		}
		return errdefs.FromCode(code, kind.Failed.GetMessage())
	default:
		return errdefs.New(errdefs.ErrInternal,
			"the model runner sent an event that this host does not know; install the ollmlx binary and the ollmlx Python package from one release")
	}
}

// close lets the session take no more requests and tells the runner so; err is what new ones get. What the runner still
// sends is read.
func (s *session) close(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed == nil {
		s.closed = err
		s.sendable.Signal()
	}
}

// end fails every request with err and lets reader and writer end. The first end counts.
func (s *session) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	s.err = err
	for _, st := range s.streams {
		st.unwatch()
		st.box.end(err)
	}
	s.streams, s.outbox = nil, nil
	s.sendable.Signal()
}

func (s *session) ended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err != nil
}

// Stream is one request of a session. Recv is for one goroutine; Close may be called from any.
type Stream struct {
	id      uint64
	session *session
	box     *mailbox
	// unwatch stops the watch over the request's ctx.
	unwatch func() bool
	// sent is guarded by session.mu: the runner has been told of the request.
	sent bool
}

// Recv returns the next event of the request, waiting for it. Deltas that came while the caller was busy are returned as
// one. It returns io.EOF after Finished was returned, and never returns Failed: that becomes an error of its kind, as do
// the end of the request's ctx (errdefs.ErrCanceled, at once) and of the runner (errdefs.ErrUnavailable, after the events
// that had come).
func (st *Stream) Recv() (*runnerpb.Event, error) { return st.box.take() }

// Close ends the request if it has not ended, and frees what has not been read. It does not wait for the runner. Every
// Stream must be closed or its ctx ended; more than once is harmless.
func (st *Stream) Close() { st.abort(errdefs.New(errdefs.ErrCanceled, "request closed")) }

func (st *Stream) abort(err error) {
	st.box.abort(err)
	st.session.forget(st)
}

// finish puts the last event, if readers are to see it, and ends the mailbox.
func (st *Stream) finish(event *runnerpb.Event, last error) {
	if last == io.EOF {
		st.box.put(event)
	}
	st.box.end(last)
}
