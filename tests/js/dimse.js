'use strict';
// dcmjs-dimse against a served archive over mutual TLS, as client and, for C-MOVE and storage commitment, as the peer that is called.
// The one argument is a JSON object: host, port, own (the port to listen at), certificates (a folder), title, files, missing; prints one JSON object.

const { readFileSync } = require('fs');
const path = require('path');
const dimse = require('dcmjs-dimse');

const { Client, Dataset, Scp, Server } = dimse;
const { CEchoRequest, CFindRequest, CGetRequest, CMoveRequest, CStoreRequest, NActionRequest, NCreateRequest, NSetRequest } = dimse.requests;
const { CEchoResponse, CStoreResponse, NEventReportResponse } = dimse.responses;
const { PresentationContextResult, Status, TransferSyntax } = dimse.constants;

dimse.log.setLevel('silent');

const COMMITMENT = '1.2.840.10008.1.20.1';
const PERFORMED = '1.2.840.10008.3.1.2.3.3';
const asked = JSON.parse(process.argv[2]);
const pem = name => readFileSync(path.join(asked.certificates, name));
const security = { key: pem('key.pem'), cert: pem('cert.pem'), ca: pem('ca.pem') };

/** Send requests on one association; return the responses of each as {status, dataset}. */
function send(requests, onStore) {
  return new Promise((resolve, reject) => {
    const client = new Client();
    const answers = requests.map(() => []);
    requests.forEach((request, n) => {
      request.on('response', response => {
        answers[n].push({ status: response.getStatus(), dataset: response.hasDataset() ? response.getDataset().getElements() : null });
      });
      client.addRequest(request);
    });
    client.on('cStoreRequest', (request, callback) => {
      onStore(request.getAffectedSopInstanceUid());
      const response = CStoreResponse.fromRequest(request);
      response.setStatus(Status.Success);
      callback(response);
    });
    client.on('associationRejected', result => reject(new Error(`rejected: ${JSON.stringify(result)}`)));
    client.on('abort', result => reject(new Error(`aborted: ${JSON.stringify(result)}`)));
    client.on('networkError', reject);
    client.on('closed', () => resolve(answers));
    client.send(asked.host, asked.port, asked.title, 'STRONGROOM', { securityOptions: { ...security, rejectUnauthorized: true } });
  });
}

const moved = [];
const reports = [];
const called = [];

/** What the archive calls: takes instances of a C-MOVE and the reports of storage commitment. */
class Peer extends Scp {
  associationRequested(association) {
    called.push(association.getCallingAeTitle());
    association.getPresentationContexts().forEach(({ id }) => {
      const context = association.getPresentationContext(id);
      const plain = [TransferSyntax.ExplicitVRLittleEndian, TransferSyntax.ImplicitVRLittleEndian];
      const taken = plain.find(uid => context.hasTransferSyntaxUid(uid));
      if (taken) context.setResult(PresentationContextResult.Accept, taken);
      else context.setResult(PresentationContextResult.RejectTransferSyntaxesNotSupported);
    });
    this.sendAssociationAccept();
  }

  cEchoRequest(request, callback) {
    const response = CEchoResponse.fromRequest(request);
    response.setStatus(Status.Success);
    callback(response);
  }

  cStoreRequest(request, callback) {
    moved.push(request.getAffectedSopInstanceUid());
    const response = CStoreResponse.fromRequest(request);
    response.setStatus(Status.Success);
    callback(response);
  }

  nEventReportRequest(request, callback) {
    const elements = request.getDataset().getElements();
    const uids = key => [].concat(elements[key] || []).map(item => item.ReferencedSOPInstanceUID);
    reports.push({
      type: request.getEventTypeId(), transaction: elements.TransactionUID,
      kept: uids('ReferencedSOPSequence'), failed: uids('FailedSOPSequence'),
    });
    const response = NEventReportResponse.fromRequest(request);
    response.setStatus(Status.Success);
    callback(response);
  }

  associationReleaseRequested() {
    this.sendAssociationReleaseResponse();
  }
}

async function until(condition, seconds) {
  const end = Date.now() + seconds * 1000;
  while (!condition() && Date.now() < end) await new Promise(resolve => setTimeout(resolve, 50));
}

const pending = answers => answers.filter(one => one.dataset !== null).map(one => one.dataset);
const last = answers => (answers.length ? answers[answers.length - 1].status : null);
const flat = value => (value === undefined || value === null ? value : JSON.parse(JSON.stringify(value)));

async function main() {
  const told = {};
  const server = new Server(Peer);
  const trouble = [];
  server.on('networkError', error => trouble.push(String(error)));
  server.listen(asked.own, { securityOptions: { ...security, requestCert: true, rejectUnauthorized: true } });

  const [echo, ...stores] = await send([new CEchoRequest(), ...asked.files.map(file => new CStoreRequest(file))]);
  told.echo = last(echo);
  told.stores = stores.map(last);

  const [studies] = await send([CFindRequest.createStudyFindRequest({
    PatientName: 'Canary*', PatientID: '', NumberOfStudyRelatedInstances: '', ModalitiesInStudy: '',
  })]);
  told.find = { status: last(studies), studies: pending(studies).map(flat) };
  const study = told.find.studies[0].StudyInstanceUID;
  const [series] = await send([CFindRequest.createSeriesFindRequest({ StudyInstanceUID: study, Modality: '' })]);
  told.find.series = pending(series).map(one => one.SeriesInstanceUID);
  const serie = told.find.series[0];
  const [images] = await send([CFindRequest.createImageFindRequest({ StudyInstanceUID: study, SeriesInstanceUID: serie, SOPInstanceUID: '' })]);
  told.find.images = pending(images).map(one => one.SOPInstanceUID).sort();
  const [wrong] = await send([CFindRequest.createSeriesFindRequest({ StudyInstanceUID: '', Modality: '' })]);
  told.find.withoutKey = last(wrong);

  told.got = {};
  for (const [level, request] of [
    ['study', CGetRequest.createStudyGetRequest(study)],
    ['series', CGetRequest.createSeriesGetRequest(study, serie)],
    ['image', CGetRequest.createImageGetRequest(study, serie, told.find.images[0])],
  ]) {
    const came = [];
    const [answers] = await send([request], uid => came.push(uid));
    told.got[level] = { status: last(answers), came: came.sort() };
  }

  told.moved = {};
  for (const [level, request] of [
    ['study', CMoveRequest.createStudyMoveRequest(asked.title, study)],
    ['series', CMoveRequest.createSeriesMoveRequest(asked.title, study, serie)],
    ['image', CMoveRequest.createImageMoveRequest(asked.title, study, serie, told.find.images[0])],
    ['unknown', CMoveRequest.createStudyMoveRequest('NOWHERE', study)],
  ]) {
    moved.length = 0;
    const [answers] = await send([request]);
    told.moved[level] = { status: last(answers), came: [...moved].sort() };
  }

  const action = new NActionRequest(COMMITMENT, `${COMMITMENT}.1`, 1);
  const reference = uid => ({ ReferencedSOPClassUID: asked.sopClass, ReferencedSOPInstanceUID: uid });
  action.setDataset(new Dataset({
    TransactionUID: '2.25.4711', ReferencedSOPSequence: [...told.find.images, asked.missing].map(reference),
  }));
  const [acted] = await send([action]);
  told.action = last(acted);
  await until(() => reports.length, 30);
  told.reports = reports;

  const [worklist] = await send([CFindRequest.createWorklistFindRequest({
    PatientName: 'Worklist*', PatientID: '', AccessionNumber: '', StudyInstanceUID: '',
    ScheduledProcedureStepSequence: [{ Modality: 'CT', ScheduledStationAETitle: asked.title, ScheduledProcedureStepStartDate: '', ScheduledProcedureStepID: '' }],
  })]);
  told.worklist = { status: last(worklist), entries: pending(worklist).map(flat) };

  const step = '2.25.4712';
  const begun = new NCreateRequest(PERFORMED, step);
  const entry = told.worklist.entries[0] || {};
  begun.setDataset(new Dataset({
    ScheduledStepAttributesSequence: [{
      StudyInstanceUID: entry.StudyInstanceUID, AccessionNumber: entry.AccessionNumber, ReferencedStudySequence: [], RequestedProcedureID: '',
      RequestedProcedureDescription: '', ScheduledProcedureStepID: '', ScheduledProcedureStepDescription: '', ScheduledProtocolCodeSequence: [],
    }],
    PatientName: 'Worklist^Number9', PatientID: entry.PatientID, PatientBirthDate: '', PatientSex: '', ReferencedPatientSequence: [],
    PerformedProcedureStepID: 'PPS1', PerformedStationAETitle: asked.title, PerformedStationName: '', PerformedLocation: '',
    PerformedProcedureStepStartDate: '20260102', PerformedProcedureStepStartTime: '030405', PerformedProcedureStepStatus: 'IN PROGRESS',
    PerformedProcedureStepDescription: '', PerformedProcedureTypeDescription: '', ProcedureCodeSequence: [],
    PerformedProcedureStepEndDate: '', PerformedProcedureStepEndTime: '', Modality: 'CT', StudyID: '', PerformedProtocolCodeSequence: [],
    PerformedSeriesSequence: [],
  }));
  const done = new NSetRequest(PERFORMED, step);
  done.setDataset(new Dataset({
    PerformedProcedureStepStatus: 'COMPLETED', PerformedProcedureStepEndDate: '20260102', PerformedProcedureStepEndTime: '040506',
    PerformedSeriesSequence: [{
      PerformingPhysicianName: '', ProtocolName: 'Knee', OperatorsName: '', SeriesInstanceUID: serie, SeriesDescription: '', RetrieveAETitle: '',
      ReferencedImageSequence: told.find.images.map(reference), ReferencedNonImageCompositeSOPInstanceSequence: [],
    }],
  }));
  const [created] = await send([begun]);
  const [set] = await send([done]);
  told.performed = [last(created), last(set)];

  told.called = [...new Set(called)];
  told.trouble = trouble;
  server.close();
  process.stdout.write(`${JSON.stringify(told)}\n`, () => process.exit(0));
}

main().catch(error => {
  process.stderr.write(`${error.stack || error}\n`);
  process.exit(1);
});
