package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/cobra"
)

// The services behind the gateways, by server name: one whose pods send as fast as
// they can, one whose pods answer once.
const (
	bulkName  = "outbound_.443_._.bulk.demo.svc.cluster.local"
	briefName = "outbound_.80_._.brief.demo.svc.cluster.local"
)

// The ports of the pods: one host stands for several, so that there are ports
// enough for many connections that end.
var (
	bulkPorts  = []uint16{9443}
	briefPorts = []uint16{9080, 9081, 9082, 9083}
)

// flight is how many bytes a pod answers to a ClientHello: about what a server's
// first flight takes with one certificate.
const flight = 1400

// tlsRecord is what TLS carries data in: a header of 5 bytes, and at most 16 KiB
// (RFC 8446, section 5).
const (
	tlsHeader = 5
	tlsRecord = 16 << 10
)

// tlsPodsCommand stands for pods that speak TLS. It runs until its input ends.
func tlsPodsCommand() *cobra.Command {
	var address string
	cmd := &cobra.Command{Use: "tls-pods", Short: "Be pods behind a gateway", Args: cobra.NoArgs, Hidden: true}
	cmd.Flags().StringVar(&address, "address", "", "the address of the pods")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ip, err := netip.ParseAddr(address)
		if err != nil {
			return err
		}
		config, err := podTLS()
		if err != nil {
			return err
		}
		serve := func(ports []uint16, handle func(net.Conn) error) error {
			for _, port := range ports {
				ln, err := (&net.ListenConfig{}).Listen(cmd.Context(), "tcp", netip.AddrPortFrom(ip, port).String())
				if err != nil {
					return err
				}
				go acceptAll(ln, handle)
			}
			return nil
		}
		if err := errors.Join(serve(bulkPorts, func(c net.Conn) error { return sendRecords(c, config) }), serve(briefPorts, answerOnce)); err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, os.Stdin)
		return err
	}
	return cmd
}

// acceptAll serves until the process ends. How a connection ends is its client's
// to tell.
func acceptAll(ln net.Listener, handle func(net.Conn) error) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_ = handle(c)
		}()
	}
}

// podTLS makes a certificate of its own.
func podTLS() (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{bulkName}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, nil
}

// sendRecords shakes hands and sends what looks like encrypted data until the
// connection is closed: to encrypt it would measure that.
func sendRecords(c net.Conn, config *tls.Config) error {
	if err := tls.Server(c, config).Handshake(); err != nil {
		return err
	}
	buf := make([]byte, 8*(tlsHeader+tlsRecord))
	for at := 0; at < len(buf); at += tlsHeader + tlsRecord {
		copy(buf[at:], []byte{23, 3, 3}) // application data
		binary.BigEndian.PutUint16(buf[at+3:], tlsRecord)
	}
	for {
		if _, err := c.Write(buf); err != nil {
			return err
		}
	}
}

// answerOnce reads a ClientHello of one record and answers it, and closes when the
// client has.
func answerOnce(c net.Conn) error {
	var header [tlsHeader]byte
	if _, err := io.ReadFull(c, header[:]); err != nil {
		return err
	}
	body := make([]byte, binary.BigEndian.Uint16(header[3:]))
	if _, err := io.ReadFull(c, body); err != nil {
		return err
	}
	if _, err := c.Write(make([]byte, flight)); err != nil {
		return err
	}
	_, err := c.Read(header[:])
	return err
}

// clientHello returns the first record of a client that asks for a server name.
func clientHello(ctx context.Context, name string) ([]byte, error) {
	near, far := net.Pipe()
	defer far.Close()
	go func() {
		defer near.Close()
		_ = tls.Client(near, &tls.Config{ServerName: name}).HandshakeContext(ctx) // it is never answered
	}()
	record := make([]byte, tlsHeader)
	if _, err := io.ReadFull(far, record); err != nil {
		return nil, fmt.Errorf("make a ClientHello: %w", err)
	}
	record = append(record, make([]byte, binary.BigEndian.Uint16(record[3:]))...)
	_, err := io.ReadFull(far, record[tlsHeader:])
	return record, err
}
